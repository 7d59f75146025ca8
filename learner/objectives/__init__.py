"""What an encoder is asked to do: SwAV's swapped prediction."""
