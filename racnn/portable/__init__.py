"""What a network that was exported needs to answer: no torch, only numpy, Pillow and onnxruntime."""
