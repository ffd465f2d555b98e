-- args: candidate, the id to take where there is none.  Returns the store's id.
return store_id(args.candidate)
