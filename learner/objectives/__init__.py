"""What an encoder is asked to do: SwAV, and methods that it is compared with."""
