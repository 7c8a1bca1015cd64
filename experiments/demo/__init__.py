"""The result folder of ``fedjax-lora run`` as the README gives it, from a fresh environment."""
