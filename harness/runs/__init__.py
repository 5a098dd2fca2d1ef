"""What a run leaves behind: records, and the folder or bucket that holds them."""
