"""What several tests share: small problems, oracles and models."""
