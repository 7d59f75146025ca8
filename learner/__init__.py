"""SwAV as in the paper: from crops to codes, loss, update and health."""
