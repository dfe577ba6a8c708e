"""Parts of the losses: classification losses of sigmoid scores, box losses, and prime sample attention."""
