-- Returns the fleet's time, in Unix seconds.
return num(now())
