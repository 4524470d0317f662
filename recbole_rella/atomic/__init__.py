"""The original files of published data sets -> RecBole's atomic files. Plain Python: neither RecBole nor torch."""
