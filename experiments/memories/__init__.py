"""Parts and pictures of the scripts about associative memories and Hopfield pooling."""
