-- Ask for cancellation.  args: job, running (bool: only if it runs).  Returns the facts for observers if it ends here, else its state, or ''.
return cancel_job(args.job, args.running)
