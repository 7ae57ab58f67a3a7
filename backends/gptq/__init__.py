"""GPTQ checkpoints, in and out: folders that GPTQModel, transformers and vLLM load."""
