"""What decoding costs and gives: benches, and in `report` what they look like."""
