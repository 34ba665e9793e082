"""Numbers about engines and pictures: latency, layers, PSNR, SSIM, seams."""
