"""Film files to frames and back: read, encoded in parts that outlive a killed run, and joined."""
