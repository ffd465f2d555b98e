"""Pictures that carry a graph: found in the files that ComfyUI's nodes save, and put back as submitted."""
