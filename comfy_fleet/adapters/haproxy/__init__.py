"""HAProxy as broker and edge: rendered, checked, applied, steered at run time and kept alive."""
