"""SwAV as the paper has it: from crops to codes, loss, update and health."""
