"""What every test shares: nothing yet that is not pytest's own."""
