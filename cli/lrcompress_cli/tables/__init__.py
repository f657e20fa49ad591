"""What a person sees on the terminal; each fits 80 columns and uses more where there are."""
