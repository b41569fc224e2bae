"""What runs beside the camera: packages of ONNX, their check against PyTorch, and a runtime without torch."""
