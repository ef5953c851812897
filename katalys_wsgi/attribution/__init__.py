"""Who brought the shopper: the click of an affiliate's link, and its cookie."""
