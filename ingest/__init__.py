"""The workers that bring the outside world onto the road."""
