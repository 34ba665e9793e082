"""What is launched for given shapes; nothing runs here."""
