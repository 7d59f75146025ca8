"""Pictures drawn by arithmetic: a source of images that needs no network and no data set."""
