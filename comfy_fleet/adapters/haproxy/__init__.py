"""HAProxy as broker and edge: render, check and apply configurations, control it at run time, keep it
running."""
