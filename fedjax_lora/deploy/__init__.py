"""A federation of real machines: messages, a site's half and a server's half of a round.

None of these modules knows the engine that carries the messages, but for
`fedjax_lora.deploy.nvflare`.
"""
