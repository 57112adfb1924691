"""The model side: loading a Qwen3-VL checkpoint, its image preprocessing, and how it eats a dialogue."""
