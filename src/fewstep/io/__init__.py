"""Model folders, cards, the hub, and files of other programs."""
