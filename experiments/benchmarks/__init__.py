"""What a user would run instead, and what the machine can do: see the packages in here."""
