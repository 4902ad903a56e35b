"""The decode loop: canvases, the step, and what stands of a request between two steps."""
