"""One module a figure; each measures ours and what stands instead in one run."""
