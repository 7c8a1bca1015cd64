"""Results of the demo, ``fedjax-lora run``."""
