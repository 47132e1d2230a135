locals {
  servers   = { for number in range(var.server_count) : format("murmesh%02d", number) => var.server_addresses[number] }
  services  = { for number in range(var.service_count) : format("fcs%02d", number) => var.service_addresses[number] }
  consumers = { for number in range(var.consumer_count) : format("fcc%02d", number) => var.consumer_addresses[number] }
  members   = merge(local.services, local.consumers)
  hosts     = merge(local.servers, local.members)
  first     = "murmesh00"

  # What provisioners need. It is kept in the input of each resource, because one that is destroyed sees nothing else.
  # `run` is filled with a script, and with its name and arguments.
  hosts_input = {
    for name, address in local.hosts : name => {
      name        = name
      address     = address
      host_key    = lookup(var.ssh_host_keys, name, null)
      user        = var.ssh_user
      port        = var.ssh_port
      key_file    = pathexpand(var.ssh_private_key_file)
      run         = "${var.ssh_user == "root" ? "" : "sudo -n "}sh -euc \"$(cat <<'MURMESH'\n%s\nMURMESH\n)\" %s"
      luks_device = var.luks_device
    }
  }
}

# The package on every host. Destroyed after all else of the host, it takes everything away.
resource "terraform_data" "host" {
  for_each         = local.hosts_input
  input            = each.value
  triggers_replace = [each.value.address, each.value.luks_device]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
    timeout     = "2m"
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/host.sh"), "host '${self.input.luks_device == null ? "" : self.input.luks_device}'")]
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = [format(self.input.run, file("${path.module}/scripts/clean.sh"), "clean")]
  }
}

# Another package is an upgrade, and takes no host out of the mesh.
resource "terraform_data" "package" {
  for_each         = local.hosts_input
  input            = each.value
  triggers_replace = [terraform_data.host[each.key].id, filesha256(var.package)]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "file" {
    source      = var.package
    destination = "murmesh.deb"
  }

  provisioner "remote-exec" {
    inline = [
      format(self.input.run, file("${path.module}/scripts/package.sh"), "package \"$HOME/murmesh.deb\""),
    ]
  }
}
