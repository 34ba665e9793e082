"""`intsr app`: a window in the browser, thin over batches. Gradio is asked for in `page` and `serve` alone."""
