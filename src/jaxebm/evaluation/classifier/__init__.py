"""Is the classifier accurate, calibrated and robust, and does it detect inputs that are not data?"""
