"""Results of ``fedjax-lora run --demo``."""
