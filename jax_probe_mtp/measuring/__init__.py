"""What decoding costs and gives: benches, reports, the choice that pays."""
