"""Programs: capture, read, run, edit and save a model, as an FX or an ONNX graph."""
