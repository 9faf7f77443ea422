"""What is not attention, or not the attention that it seems to be; one module per way to be mistaken."""
