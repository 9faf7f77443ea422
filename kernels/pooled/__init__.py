"""Keys near a query one by one, all others as averages of cells, in one softmax."""
