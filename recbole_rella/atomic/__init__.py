"""RecBole's atomic files: reading them, and making them of the original files of published data sets. Neither RecBole nor torch."""
