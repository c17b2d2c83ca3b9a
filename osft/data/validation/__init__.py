"""Every row checked, converted where asked, and parted into valid and invalid ones."""
