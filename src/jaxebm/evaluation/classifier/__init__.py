"""Is the classifier right, calibrated and robust, and does it know which inputs are not data?"""
