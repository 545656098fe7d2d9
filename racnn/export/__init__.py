"""A network as one .onnx file: from the pixels of a photo of any size to names and places."""
