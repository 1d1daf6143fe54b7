"""What a run shows to those who do not look: metrics, and notifications."""
