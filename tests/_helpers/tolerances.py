"""How closely two ways of computing the same round agree."""

FROM_AN_SVD = {
    "hlora", "flexlora", "raflora", "rb_lora", "florist", "fedrora", "fedhl", "fedmomentum",
    "eclora", "fedsvd", "fedrot_lora",
}  # fmt: skip
TOLERANCE = {name: 2e-5 for name in FROM_AN_SVD}
"""Singular vectors turn by rounding divided by the distance of two singular values: the factors
differ by 1e-4, and what is cut off with them by 7e-6 (measured). The other methods are as close as
training itself, `problems.MODE_TOLERANCE`, in every factor; measured: 5e-7."""
