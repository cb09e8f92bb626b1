"""Parts and pictures of the scripts about samplers and densities with exact answers."""
