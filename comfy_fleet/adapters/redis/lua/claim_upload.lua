-- Tell whoever writes an upload that somebody else wants to.  args: id, token.  Returns 1, or 0 if there is no such upload.
if redis.call('EXISTS', upload_key(args.id)) == 0 then return 0 end
redis.call('HSET', upload_key(args.id), 'claim', args.token)
return 1
