"""Parts of the losses: classification losses for sigmoid scores, box losses, and prime sample attention."""
