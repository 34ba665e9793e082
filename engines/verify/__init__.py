"""An engine's torch reference, agreement in dB, and the check before a file is put in place."""
