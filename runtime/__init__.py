"""Run engines: open a bundle, tile, run, fix colours, read and write pictures. No torch here."""
