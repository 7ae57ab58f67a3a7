"""ONNX for stock ONNX Runtime, written operator by operator, and for onnxruntime-genai where the model generates."""
